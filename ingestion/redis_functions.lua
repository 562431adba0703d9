#!lua name=tally
-- The writes that must be atomic per key. Redis 7.0 and later, Valkey 7.2 and later; every function takes one key.
-- The bytes are those of tally/layout.py and tally/tiles.py. Lua's numbers are exact to 2^53, so 64-bit integers that may
-- be larger are held and compared as (high, low) halves of 32 bits; counts and Kafka offsets are plain numbers.

-- Locals are faster than globals, and these are called for every record. Lua's libraries are not there yet while this
-- one is being loaded, so they are bound when a function is called.
local read, write, sub, byte, floor

-- The writers to whom this very server has shown that it holds all that they know to be written (`witness`). They are kept
-- in this library's memory and not in the data, so a server that was started again, promoted or loaded from a snapshot
-- knows none: what such a writer sends is refused, until it has looked again. The nameless writer relies on nothing.
local witnessed, witnesses = { [''] = true }, 0

local LATEST_FORMAT, TILES_FORMAT = 1, 2
local HALF = 4294967296
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

local function check(value, format, tag, key)
  if byte(value, 1) ~= format then fail('TALLYFORMAT', key) end
  local stored = sub(value, 2, 9)
  if stored ~= tag then
    fail('TALLYTAG', (string.gsub(stored, '.', function(c) return string.format('%02x', byte(c)) end)) .. ' ' .. key)
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
    check(stored, LATEST_FORMAT, sub(value, 2, 9), key)
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

-- A merge program (TileLayout.merge_program) with the format of a record and where each column's numbers are in it. `texts`,
-- where there are any, are the places of their lengths: among the numbers (`place`) and in the bytes (`offset`).
local function compile(text)
  local document = cjson.decode(text)
  local format, columns, texts, at, offset = { '<BI4i4' }, {}, {}, 4, 9
  local function add(piece, numbers, bytes)
    table.insert(format, piece)
    at, offset = at + numbers, offset + bytes
  end
  for _, cells in ipairs(document.columns) do
    local column = { count = at, cells = {} }
    add('<I8', 1, 8)
    for _, cell in ipairs(cells) do
      local kind, limbs = cell[1], cell[2]
      local first, of_text = at, nil
      if limbs > 0 then
        add('<' .. string.rep('I4', limbs - 1) .. 'i4', limbs, 4 * limbs)
      else
        if kind == 'first' or kind == 'last' then add('>I4I4I4I4I4', 5, 20) end
        if limbs == 0 then
          add('>I4I4', 2, 8)
        else
          of_text = at
          table.insert(texts, { place = at, offset = offset })
          add('<I2', 1, 2)
        end
      end
      local least = kind == 'min' or kind == 'first'
      table.insert(column.cells, { adds = limbs > 0, least = least, first = first, last = at - 1, text = of_text })
    end
    column.last = at - 1
    table.insert(columns, column)
  end
  local levels = {}
  for _, level in ipairs(document.levels) do
    local length_high = floor(level[2] / HALF)
    table.insert(levels, { hop = level[1], length_high = length_high, length_low = level[2] - length_high * HALF })
  end
  if #texts == 0 then texts = nil end
  return {
    size = document.size, format = table.concat(format), width = at - 1, columns = columns, texts = texts, levels = levels,
  }
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
  if high >= -1048576 and high < 1048576 then
    local number = high * HALF + low
    local quotient = floor(number / divisor)
    local remainder = number - quotient * divisor
    if remainder < 0 then
      quotient = quotient - 1
    elseif remainder >= divisor then
      quotient = quotient + 1
    end
    local quotient_high = floor(quotient / HALF)
    return quotient_high, quotient - quotient_high * HALF
  end
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
  low = low - level.length_low
  high = high - level.length_high
  if low < 0 then
    low, high = low + HALF, high - 1
  end
  return floor_divide(high, low, level.hop)
end

-- Records within a string, from `start` on (TileLayout.pack): `total` of them, and where the texts of each begin.
local function block_of(program, bytes, start)
  if not program.texts then return { bytes = bytes, start = start, total = (#bytes + 1 - start) / program.size } end
  local block = { bytes = bytes, start = start + 4, total = read('<I4', bytes, start), text = {} }
  local at = block.start + block.total * program.size
  for i = 0, block.total - 1 do
    block.text[i] = at
    for _, text in ipairs(program.texts) do
      at = at + read('<I2', bytes, block.start + i * program.size + text.offset)
    end
  end
  block.text[block.total] = at
  return block
end

-- The first of the sorted records from `from` (from 0) that is not before (level, high, low).
local function search(program, block, from, level, high, low)
  local bytes, start, size, stop = block.bytes, block.start, program.size, block.total
  local middle = from
  while from < stop do
    local its_level, its_low, its_high = read('<BI4i4', bytes, start + middle * size)
    if its_level < level or (its_level == level and less(its_high, its_low, high, low)) then
      from = middle + 1
    else
      stop = middle
    end
    middle = floor((from + stop) / 2)
  end
  return from
end

-- The numbers of a record, with texts in the place of their lengths.
local function numbers_of(program, block, i)
  local numbers = { read(program.format, block.bytes, block.start + i * program.size) }
  if program.texts then
    local at = block.text[i]
    for _, text in ipairs(program.texts) do
      local stop = at + numbers[text.place]
      numbers[text.place] = sub(block.bytes, at, stop - 1)
      at = stop
    end
  end
  return numbers
end

-- Append records from..stop - 1 of a block as they are.
local function copy(program, pieces, texts, block, from, stop)
  pieces[#pieces + 1] = sub(block.bytes, block.start + from * program.size, block.start + stop * program.size - 1)
  if program.texts then texts[#texts + 1] = sub(block.bytes, block.text[from], block.text[stop] - 1) end
end

-- Append a record.
local function append(program, pieces, texts, numbers)
  if program.texts then
    for _, text in ipairs(program.texts) do
      texts[#texts + 1] = numbers[text.place]
      numbers[text.place] = #numbers[text.place]
    end
  end
  pieces[#pieces + 1] = write(program.format, unpack(numbers, 1, program.width)) -- behind them is where the record ended
end

local function merge_records(program, into, other)
  for _, column in ipairs(program.columns) do
    local count = column.count
    if other[count] > 0 and into[count] == 0 then
      for i = count, column.last do into[i] = other[i] end
    elseif other[count] > 0 then
      into[count] = into[count] + other[count]
      for _, cell in ipairs(column.cells) do
        local first, last = cell.first, cell.last
        if cell.adds then
          local carry = 0
          for i = first, last - 1 do
            local sum = into[i] + other[i] + carry
            if sum >= HALF then
              into[i], carry = sum - HALF, 1
            else
              into[i], carry = sum, 0
            end
          end
          local top = into[last] + other[last] + carry
          if top < -2147483648 or top > 2147483647 then
            fail('TALLYRANGE', 'a sum does not fit its cell')
          end
          into[last] = top
        else
          for i = first, last do
            if into[i] ~= other[i] then
              local smaller
              if i == cell.text then
                smaller = bytes_less(other[i], into[i])
              else
                smaller = other[i] < into[i]
              end
              if smaller == cell.least then
                for j = i, last do into[j] = other[j] end
              end
              break
            end
          end
        end
      end
    end
  end
end

-- How a delta's extents (u32 partition, i64 first offset, i64 last offset; by rising partition) lie to the stored fences:
-- the fences after it; or, when some of its events were applied before, nil and 0 and each extent's stored fence (-1: none).
local function raise_fences(value, count, extents)
  local pieces, known, at, clear = {}, { 0 }, 0, true
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
      pieces[#pieces + 1] = write('<I4i8', stored, offset)
    end
    known[#known + 1] = fence
    if fence >= first then clear = false end
    pieces[#pieces + 1] = write('<I4i8', partition, last)
  end
  if not clear then return nil, known end
  pieces[#pieces + 1] = sub(value, HEADER + 1 + at * FENCE, HEADER + count * FENCE)
  return table.concat(pieces)
end

-- ARGV: merge program, tag, i64 newest event timestamp of the delta, extents, records (TileLayout.pack), ttl_ms. They are
-- sorted and hold, for each extent, every event of this key from its first offset to its last. Applied once, whoever sends it,
-- however often:
--   1                    applied
--   {1, p, q, ...}       applied, but these of its records (from 0) were older than every window as of the newest event
--                        that was stored before
--   {0, f, g, ...}       not applied: for each extent, events up to this stored fence were applied before (-1: none);
--                        send again what lies beyond
local function merge_tiles(keys, args)
  local key, program, tag, extents = keys[1], program_of(args[1]), args[2], args[4]
  local low, high = read('<I4i4', args[3])
  local value = redis.call('GET', key)
  local stored_low, stored_high
  local count, stored = 0, { total = 0 }
  if value then
    check(value, TILES_FORMAT, tag, key)
    stored_low, stored_high, count = read('<I4i4H', value, 10)
    if less(high, low, stored_high, stored_low) then high, low = stored_high, stored_low end
  end
  local fences, known = raise_fences(value or '', count, extents)
  if not fences then return known end
  if value then stored = block_of(program, value, HEADER + 1 + count * FENCE) end

  local sent = block_of(program, args[5], 1)
  local pieces, texts, kept = { '' }, {}, 0
  local too_late = { 1 }
  local cursor, next_sent = 0, 0
  for position, level in ipairs(program.levels) do
    local number = position - 1
    local oldest_high, oldest_low = oldest_tile(level, high, low)
    local known_high, known_low
    if value then known_high, known_low = oldest_tile(level, stored_high, stored_low) end
    cursor = search(program, stored, cursor, number, oldest_high, oldest_low)
    while next_sent < sent.total do
      local its_level, its_low, its_high = read('<BI4i4', sent.bytes, sent.start + next_sent * program.size)
      if its_level ~= number then break end
      if less(its_high, its_low, oldest_high, oldest_low) then
        if value and less(its_high, its_low, known_high, known_low) then too_late[#too_late + 1] = next_sent end
      else
        local place = search(program, stored, cursor, number, its_high, its_low)
        if place > cursor then
          copy(program, pieces, texts, stored, cursor, place)
          kept, cursor = kept + place - cursor, place
        end
        local numbers
        if cursor < stored.total then numbers = numbers_of(program, stored, cursor) end
        if numbers and numbers[1] == number and numbers[2] == its_low and numbers[3] == its_high then
          merge_records(program, numbers, numbers_of(program, sent, next_sent))
          append(program, pieces, texts, numbers)
          cursor = cursor + 1
        else
          copy(program, pieces, texts, sent, next_sent, next_sent + 1)
        end
        kept = kept + 1
      end
      next_sent = next_sent + 1
    end
    local stop = search(program, stored, cursor, position, LOWEST_HIGH, 0)
    if stop > cursor then
      copy(program, pieces, texts, stored, cursor, stop)
      kept, cursor = kept + stop - cursor, stop
    end
  end
  pieces[1] = write('<B', TILES_FORMAT) .. tag .. write('<I4i4H', low, high, #fences / FENCE) .. fences
  if program.texts then
    pieces[1] = pieces[1] .. write('<I4', kept)
    pieces[#pieces + 1] = table.concat(texts)
  end
  store(key, table.concat(pieces), args[6])
  if #too_late > 1 then return too_late end
  return 1
end

-- ARGV: value, ttl_ms. Stores tiles made elsewhere where nothing is, or where they hold at least every event that is
-- applied here: no stored fence lies beyond theirs. Returns 1 when stored, 0 when what is there stays.
local function load_tiles(keys, args)
  local key, value = keys[1], args[1]
  local stored = redis.call('GET', key)
  if stored then
    check(stored, TILES_FORMAT, sub(value, 2, 9), key)
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
-- it before, so the data were changed beneath us and not by a start, a failover or a snapshot.
local function witness(keys, args)
  local writer = args[#args]
  for i = 1, #args - 1, 2 do
    local stored = redis.call('HGET', keys[1], args[i])
    if not stored or tonumber(stored) < tonumber(args[i + 1]) then return witnessed[writer] and -1 or 0 end
  end
  if not witnessed[writer] then
    if witnesses >= 4096 then witnessed, witnesses = { [''] = true }, 0 end
    witnessed[writer], witnesses = true, witnesses + 1
  end
  return 1
end

redis.register_function('tally_put_latest', bound(put_latest))
redis.register_function('tally_merge_tiles', bound(merge_tiles))
redis.register_function('tally_load_tiles', bound(load_tiles))
redis.register_function('tally_advance', bound(advance))
redis.register_function('tally_begin', begin)
redis.register_function('tally_witness', witness)
