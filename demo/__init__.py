"""The example: one hour before a flight leaves New York, will it arrive more than 15 minutes late?"""

import os

# scikit-learn's threads wait for each other: sleeping, not spinning, or a busy machine makes the model ten times slower.
# OpenMP reads this when it is loaded, so it is set before anything imports it.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
