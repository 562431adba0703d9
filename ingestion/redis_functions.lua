#!lua name=tally
-- The writes that must be atomic per key. Redis 7.0 and later, Valkey 7.2 and later.
-- The bytes are those of tally/layout.py and tally/tiles.py. Lua's numbers are exact to 2^53, so 64-bit integers that may
-- be larger are held and compared as (high, low) halves of 32 bits; counts and Kafka offsets are plain numbers.

-- Locals are faster than globals, and these are called for every record. Lua's libraries are not there yet while this
-- one is being loaded, so they are bound when a function is called.
local read, write, sub, byte, floor

-- The writers to whom this very server has shown that it holds all that they know to be written, and by which keys
-- (`witness`). They are kept in this library's memory and not in the data, so a server that was started again, promoted or
-- loaded from a snapshot knows none: what such a writer sends is refused, until it has looked again. The nameless writer
-- relies on nothing.
local witnessed, witnesses = { [''] = {} }, 0

local LATEST_FORMAT, TILES_FORMAT = 1, 2
local HALF = 4294967296
local EXACT = 4503599627370496 -- 2^52: quotients and remainders of numbers up to here are exact
local LOWEST_HIGH = -2147483648

local function fail(code, text)
  error({ err = code .. ' ' .. text })
end

-- Every function's last argument is its writer's name.
local function bound(callback)
  return function(keys, args)
    read, write, sub, byte, floor = struct.unpack, struct.pack, string.sub, string.byte, math.floor
    if not witnessed[args[#args]] then fail('TALLYWITNESS', 'this server is not known to hold what you wrote') end
    return callback(keys, args)
  end
end

local function less(high, low, other_high, other_low)
  return high < other_high or (high == other_high and low < other_low)
end

-- Bytewise; Lua's own < on strings obeys the server's locale.
local function bytes_less(one, other)
  for i = 1, math.min(#one, #other) do
    local x, y = byte(one, i), byte(other, i)
    if x ~= y then return x < y end
  end
  return #one < #other
end

-- Errors say which of the call's keys they are about.
local function check(value, format, tag, number)
  if byte(value, 1) ~= format then fail('TALLYFORMAT', number) end
  local stored = sub(value, 2, 9)
  if stored ~= tag then
    fail('TALLYTAG', number .. ' ' .. (string.gsub(stored, '.', function(c) return string.format('%02x', byte(c)) end)))
  end
end

local function store(key, value, ttl_ms)
  if tonumber(ttl_ms) > 0 then
    redis.call('SET', key, value, 'PX', ttl_ms)
  else
    redis.call('SET', key, value)
  end
end

-- Latest rows ------------------------------------------------------------------------------------------------------------

-- ARGV: value, ttl_ms (0: none). Keeps the row that is greatest by (timestamp, a, b), then by bytes, so the result does
-- not depend on the order of the calls. Returns 1 when the value was stored, 0 when what is there stays.
local function put_latest(keys, args)
  local key, value = keys[1], args[1]
  local stored = redis.call('GET', key)
  if stored then
    check(stored, LATEST_FORMAT, sub(value, 2, 9), 1)
    if stored == value then return 0 end
    local ordered = false
    for position = 10, 26, 8 do
      local low, high = read('<I4i4', value, position)
      local stored_low, stored_high = read('<I4i4', stored, position)
      if high ~= stored_high or low ~= stored_low then
        if less(high, low, stored_high, stored_low) then return 0 end
        ordered = true
        break
      end
    end
    if not ordered and bytes_less(value, stored) then return 0 end
  end
  store(key, value, args[2])
  return 1
end

-- Tiles ------------------------------------------------------------------------------------------------------------------

local HEADER, FENCE, EXTENT = 19, 12, 20
local NONE = {}

-- What the value that is being written consists of, by position. One table serves all calls: it costs to make one.
local pieces = {}

-- Numbers first..last of one of two records, as source: a1, a2, ... (stored) or b1, b2, ... (sent).
local function names(side, first, last)
  local found = {}
  for i = first, last do found[#found + 1] = side .. i end
  return table.concat(found, ', ')
end

-- Source that merges a cell of numbers first..last into the stored one; the last is a text where `is_text`.
local function source_of_cell(kind, limbs, first, last, is_text)
  local lines = {}
  local function line(text, ...)
    lines[#lines + 1] = string.format(text, ...)
  end
  if limbs > 0 then
    for i = first, last - 1 do
      line('a%d = a%d + b%d', i, i, i)
      line('if a%d >= 4294967296 then a%d, a%d = a%d - 4294967296, a%d + 1 end', i, i, i + 1, i, i + 1)
    end
    line('a%d = a%d + b%d', last, last, last)
    line('if a%d < -2147483648 or a%d > 2147483647 then return nil end', last, last)
  else
    line('smaller = nil') -- whether the sent one is, by the first number that differs
    for i = first, last do
      local compared = is_text and i == last and 'bytes_less(b%d, a%d)' or 'b%d < a%d'
      line('%s a%d ~= b%d then smaller = ' .. compared, i == first and 'if' or 'elseif', i, i, i, i)
    end
    line('end')
    local least = kind == 'min' or kind == 'first'
    line('if smaller == %s then %s = %s end', tostring(least), names('a', first, last), names('b', first, last))
  end
  return table.concat(lines, '\n')
end

-- A merge program (TileLayout.merge_program): its levels, the size of a record, where in it the lengths of texts are, and
-- `merge`. That is made from source with a local for every number, since each delta costs as much as this does. It puts what
-- follows the tile's index in the merger of two records of one tile behind the `count` pieces that there are, and its texts
-- into `texts`; and returns the number of pieces, or nil when a sum does not fit its cell. The records begin at `at` and
-- `other_at`, their texts at `text` and `other_text`.
local function compile(text)
  local document = cjson.decode(text)
  local offset, texts = 9, {}
  local source = {
    'local read, write, sub, bytes_less, pieces = ...',
    'return function(count, texts, stored, at, text, sent, other_at, other_text)',
    'local smaller',
  }
  for _, cells in ipairs(document.columns) do
    local begin, format, width, lengths, merges = offset, { '<I8' }, 1, {}, {}
    offset = offset + 8
    for _, cell in ipairs(cells) do
      local kind, limbs, first = cell[1], cell[2], width + 1
      if limbs > 0 then
        format[#format + 1] = '<' .. string.rep('I4', limbs - 1) .. 'i4'
        width, offset = width + limbs, offset + 4 * limbs
      else
        if kind == 'first' or kind == 'last' then
          format[#format + 1] = '>I4I4I4I4I4'
          width, offset = width + 5, offset + 20
        end
        if limbs == 0 then
          format[#format + 1] = '>I4I4'
          width, offset = width + 2, offset + 8
        else
          format[#format + 1] = '<I2'
          width = width + 1
          texts[#texts + 1] = offset
          lengths[#lengths + 1] = width
          offset = offset + 2
        end
      end
      merges[#merges + 1] = source_of_cell(kind, limbs, first, width, limbs < 0)
    end
    local packed = table.concat(format)
    local function line(text, ...)
      source[#source + 1] = string.format(text, ...)
    end
    line('do')
    line("local %s = read('%s', stored, at + %d)", names('a', 1, width), packed, begin)
    line("local %s = read('%s', sent, other_at + %d)", names('b', 1, width), packed, begin)
    for _, i in ipairs(lengths) do
      line('text, a%d = text + a%d, sub(stored, text, text + a%d - 1)', i, i, i)
      line('other_text, b%d = other_text + b%d, sub(sent, other_text, other_text + b%d - 1)', i, i, i)
    end
    line('if a1 == 0 then %s = %s', names('a', 1, width), names('b', 1, width))
    line('elseif b1 > 0 then a1 = a1 + b1')
    source[#source + 1] = table.concat(merges, '\n')
    line('end')
    for _, i in ipairs(lengths) do
      line('texts[#texts + 1], a%d = a%d, #a%d', i, i, i)
    end
    line("count = count + 1 pieces[count] = write('%s', %s)", packed, names('a', 1, width))
    line('end')
  end
  source[#source + 1] = 'return count end'
  local levels = {}
  for i, level in ipairs(document.levels) do
    local length_high = floor(level[2] / HALF)
    levels[i] =
      { hop = level[1], length = level[2], length_high = length_high, length_low = level[2] - length_high * HALF }
  end
  if #texts == 0 then texts = nil end
  local merge = assert(loadstring(table.concat(source, '\n')))(read, write, sub, bytes_less, pieces)
  return { size = document.size, merge = merge, texts = texts, levels = levels }
end

-- Compiled programs by their text: a handful per project, forgotten when definitions have changed very often.
local programs, programs_kept = {}, 0

local function program_of(text)
  local program = programs[text]
  if not program then
    if programs_kept >= 256 then programs, programs_kept = {}, 0 end
    program = compile(text)
    programs[text] = program
    programs_kept = programs_kept + 1
  end
  return program
end

-- floor((high:low) / divisor), exactly, for a divisor below 2^52.
local function floor_divide(high, low, divisor)
  if high < 0 then -- floor(a / b) = -1 - floor((-1 - a) / b)
    local inverse_high, inverse_low = floor_divide(-1 - high, HALF - 1 - low, divisor)
    return -1 - inverse_high, HALF - 1 - inverse_low
  end
  local remainder, halves = 0, {}
  for i, half in ipairs({ high, low }) do
    local quotient, bit = 0, 2147483648
    while bit >= 1 do
      remainder = remainder * 2
      if half >= bit then
        remainder, half = remainder + 1, half - bit
      end
      quotient = quotient * 2
      if remainder >= divisor then
        remainder, quotient = remainder - divisor, quotient + 1
      end
      bit = bit / 2
    end
    halves[i] = quotient
  end
  return halves[1], halves[2]
end

-- Index of the oldest tile of a level that a window as of high:low or later can see.
local function oldest_tile(level, high, low)
  local hop, number = level.hop, high * HALF + low - level.length
  if high >= -1048576 and high < 1048576 and number >= -EXACT and number < EXACT then
    local remainder = number % hop -- below zero where the quotient was rounded up to the next integer
    local tile = (number - remainder) / hop
    if remainder < 0 then tile = tile - 1 end
    local tile_low = tile % HALF
    return (tile - tile_low) / HALF, tile_low
  end
  low = low - level.length_low
  high = high - level.length_high
  if low < 0 then
    low, high = low + HALF, high - 1
  end
  return floor_divide(high, low, hop)
end

-- Records within a string, from `start` on (TileLayout.pack): where the first begins, how many there are, and, where they have
-- texts, where those of each begin.
local function block_of(program, bytes, start)
  local size = program.size
  if not program.texts then return start, (#bytes + 1 - start) / size, NONE end
  local total, text = read('<I4', bytes, start), {}
  start = start + 4
  local at = start + total * size
  for i = 0, total - 1 do
    text[i] = at
    for _, offset in ipairs(program.texts) do
      at = at + read('<I2', bytes, start + i * size + offset)
    end
  end
  text[total] = at
  return start, total, text
end

-- The first of the sorted records from `from` (from 0) to `stop` that is not before (level, high, low): often the very first.
local function search(bytes, start, size, from, stop, level, high, low)
  local middle = from
  while from < stop do
    local its_level, its_low, its_high = read('<BI4i4', bytes, start + middle * size)
    if
      its_level < level
      or (its_level == level and (its_high < high or (its_high == high and its_low < low)))
    then
      from = middle + 1
    else
      stop = middle
    end
    middle = floor((from + stop) / 2)
  end
  return from
end

-- How a delta's extents (u32 partition, i64 first offset, i64 last offset; by rising partition) lie to the stored fences: how
-- many fences there are after it, which are pieces from the second on, and how many pieces there are; or, when some of its
-- events were applied before, nil and 0 and each extent's stored fence (-1: none).
local function raise_fences(value, count, extents)
  local known, at, written, clear = nil, 0, 1, true
  for position = 1, #extents, EXTENT do
    local partition, first, last = read('<I4i8i8', extents, position)
    local fence = -1
    while at < count do
      local stored, offset = read('<I4i8', value, HEADER + 1 + at * FENCE)
      if stored > partition then break end
      at = at + 1
      if stored == partition then
        fence = offset
        break
      end
      written = written + 1
      pieces[written] = write('<I4i8', stored, offset)
    end
    if fence >= first then clear = false end
    written = written + 1
    pieces[written] = write('<I4i8', partition, last)
    known = known or { 0 }
    known[#known + 1] = fence
  end
  if not clear then return nil, known end
  local rest = count - at
  if rest > 0 then
    pieces[written + 1] = sub(value, HEADER + 1 + at * FENCE, HEADER + count * FENCE)
    return written - 1 + rest, written + 1
  end
  return written - 1, written
end

-- Merge one delta: what `merge` below says.
local function merge_tiles(program, tag, ttl_ms, number, key, newest, extents, records)
  local low, high = read('<I4i4', newest)
  local value = redis.call('GET', key)
  local stored_low, stored_high
  local count = 0
  if value then
    check(value, TILES_FORMAT, tag, number)
    stored_low, stored_high, count = read('<I4i4H', value, 10)
    if less(high, low, stored_high, stored_low) then high, low = stored_high, stored_low end
  end
  local fences, written = raise_fences(value, count, extents)
  if not fences then return written end
  local size, levels, merge_records = program.size, program.levels, program.merge
  local start, total, text = 1, 0, NONE
  if value then start, total, text = block_of(program, value, HEADER + 1 + count * FENCE) end
  local sent_start, sent_total, sent_text = block_of(program, records, 1)
  local texts, before_records
  if program.texts then
    texts, before_records, written = {}, written + 1, written + 1
  end

  local kept, too_late = 0, nil
  local cursor, next_sent = 0, 0
  for position = 1, #levels do
    local level, level_number = levels[position], position - 1
    local oldest_high, oldest_low = oldest_tile(level, high, low)
    cursor = search(value, start, size, cursor, total, level_number, oldest_high, oldest_low)
    local oldest = cursor
    while next_sent < sent_total do
      local sent_at = sent_start + next_sent * size
      local its_level, its_low, its_high = read('<BI4i4', records, sent_at)
      if its_level ~= level_number then break end
      if less(its_high, its_low, oldest_high, oldest_low) then
        if value then
          local known_high, known_low = oldest_tile(level, stored_high, stored_low)
          if less(its_high, its_low, known_high, known_low) then
            too_late = too_late or { 1 }
            too_late[#too_late + 1] = next_sent
          end
        end
      else
        -- Where it is if no tile before it is missing, as is most often so.
        local place = oldest + (its_high - oldest_high) * HALF + its_low - oldest_low
        local at = start + place * size
        local found = place < total and sub(value, at, at + 8) == sub(records, sent_at, sent_at + 8)
        if not found then
          place = search(value, start, size, cursor, total, level_number, its_high, its_low)
          at = start + place * size
          found = place < total and sub(value, at, at + 8) == sub(records, sent_at, sent_at + 8)
        end
        local begin = start + cursor * size
        if place > cursor and texts then texts[#texts + 1] = sub(value, text[cursor], text[place] - 1) end
        kept, cursor = kept + place - cursor + 1, place
        written = written + 1
        if found then
          pieces[written] = sub(value, begin, at + 8) -- the records before it, and its level and tile
          written = merge_records(written, texts, value, at, text[place], records, sent_at, sent_text[next_sent])
          if not written then fail('TALLYRANGE', number) end
          cursor = cursor + 1
        else
          pieces[written] = value and sub(value, begin, at - 1) or ''
          written = written + 1
          pieces[written] = sub(records, sent_at, sent_at + size - 1)
          if texts then texts[#texts + 1] = sub(records, sent_text[next_sent], sent_text[next_sent + 1] - 1) end
        end
      end
      next_sent = next_sent + 1
    end
    local stop = search(value, start, size, cursor, total, position, LOWEST_HIGH, 0)
    if stop > cursor then
      written = written + 1
      pieces[written] = sub(value, start + cursor * size, start + stop * size - 1)
      if texts then texts[#texts + 1] = sub(value, text[cursor], text[stop] - 1) end
      kept, cursor = kept + stop - cursor, stop
    end
  end
  pieces[1] = write('<Bc8I4i4H', TILES_FORMAT, tag, low, high, fences)
  if texts then
    pieces[before_records] = write('<I4', kept)
    written = written + 1
    pieces[written] = table.concat(texts)
  end
  store(key, table.concat(pieces, '', 1, written), ttl_ms)
  return too_late or 1
end

-- ARGV: merge program, tag, ttl_ms, and for each key its delta: i64 newest event timestamp, extents, records
-- (TileLayout.pack). The records are sorted and hold, for each extent, every event of this key from its first offset to its
-- last. A delta is applied once, whoever sends it, however often, and each for itself. One reply for each:
--   1                    applied
--   {1, p, q, ...}       applied, but these of its records (from 0) were older than every window as of the newest event
--                        that was stored before
--   {0, f, g, ...}       not applied: for each extent, events up to this stored fence were applied before (-1: none);
--                        send again what lies beyond
local function merge(keys, args)
  local program, replies = program_of(args[1]), {}
  for number = 1, #keys do
    local at = 1 + 3 * number
    replies[number] =
      merge_tiles(program, args[2], args[3], number, keys[number], args[at], args[at + 1], args[at + 2])
  end
  return replies
end

-- ARGV: value, ttl_ms. Stores tiles made elsewhere where nothing is, or where they hold at least every event that is
-- applied here: no stored fence lies beyond theirs. Returns 1 when stored, 0 when what is there stays.
local function load_tiles(keys, args)
  local key, value = keys[1], args[1]
  local stored = redis.call('GET', key)
  if stored then
    check(stored, TILES_FORMAT, sub(value, 2, 9), 1)
    local offsets = {}
    for i = 0, read('<H', value, 18) - 1 do
      local partition, offset = read('<I4i8', value, HEADER + 1 + i * FENCE)
      offsets[partition] = offset
    end
    for i = 0, read('<H', stored, 18) - 1 do
      local partition, offset = read('<I4i8', stored, HEADER + 1 + i * FENCE)
      if not offsets[partition] or offsets[partition] < offset then return 0 end
    end
  end
  store(key, value, args[2])
  return 1
end

-- Progress ---------------------------------------------------------------------------------------------------------------

-- ARGV: field, offset, field, offset, ..., writer. Raises each field of the hash to its offset, never lowers one.
local function advance(keys, args)
  for i = 1, #args - 1, 2 do
    local stored = redis.call('HGET', keys[1], args[i])
    if not stored or tonumber(stored) < tonumber(args[i + 1]) then
      redis.call('HSET', keys[1], args[i], args[i + 1])
    end
  end
  return redis.status_reply('OK')
end

-- ARGV: field, offset, field, offset, ..., writer. Sets those fields of the hash that it does not have.
local function begin(keys, args)
  for i = 1, #args - 1, 2 do
    if not redis.call('HGET', keys[1], args[i]) then redis.call('HSET', keys[1], args[i], args[i + 1]) end
  end
  return redis.status_reply('OK')
end

-- ARGV: field, offset, field, offset, ..., writer. Whether each field of the hash has come to its offset at least. 1: it
-- has, and this server takes the writer's word from now on. 0: it has not. -1: it has not, although the server had shown
-- this hash to the writer before, so the data were changed beneath us and not by a start, a failover or a snapshot.
local function witness(keys, args)
  local key, writer = keys[1], args[#args]
  local shown = witnessed[writer] and witnessed[writer][key]
  for i = 1, #args - 1, 2 do
    local stored = redis.call('HGET', key, args[i])
    if not stored or tonumber(stored) < tonumber(args[i + 1]) then return shown and -1 or 0 end
  end
  if not witnessed[writer] then
    if witnesses >= 4096 then witnessed, witnesses = { [''] = {} }, 0 end
    witnessed[writer], witnesses = {}, witnesses + 1
  end
  witnessed[writer][key] = true
  return 1
end

redis.register_function('tally_put_latest', bound(put_latest))
redis.register_function('tally_merge', bound(merge))
redis.register_function('tally_load_tiles', bound(load_tiles))
redis.register_function('tally_advance', bound(advance))
redis.register_function('tally_begin', begin)
redis.register_function('tally_witness', witness)
