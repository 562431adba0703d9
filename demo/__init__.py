"""The example: one hour before a flight leaves New York, will it arrive more than 15 minutes late?"""
