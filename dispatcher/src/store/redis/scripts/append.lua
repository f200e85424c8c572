-- One batch of one partition, all or nothing. Lua does not roll back: everything is checked before the first write.
-- KEYS: 1 fence, 2 outstanding, 3 events, 4.. as the writes point at them
-- ARGV: 1 epoch, 2 nonce, 3 position, 4 highest message id or '', 5 fanned out, 6 outstanding or '', 7 events kept (0: off),
--   8 answers kept, 9 for how many ms, 10 streams kept, then for each write (… of a key is its index in KEYS)
--   'M', log …, seq, record, answers … or 0, streams …, stream, answer
--   'R', log …, seq, record
--   'G', members …, version, count, added members ..., count, removed members ...
--   'S', state …, key, 1 or 0, value
--   'C', cursors …, name, cursor
--   'T', log …, first seq
--   'E', kind, body
local fence = redis.call('HMGET', KEYS[1], 'e', 'n', 'p', 'l')
if fence[1] ~= ARGV[1] or fence[2] ~= ARGV[2] then return {'fenced'} end
if fence[3] ~= ARGV[3] then return {'position', fence[3] or '0'} end

local length = { M = 8, R = 4, S = 5, C = 4, T = 3, E = 3 }
local heads, at = {}, 11
while at <= #ARGV do
  local kind = ARGV[at]
  if kind == 'M' then
    local key, seq = KEYS[tonumber(ARGV[at + 1])], tonumber(ARGV[at + 2])
    local head = heads[key] or tonumber(redis.call('HGET', key, 'h') or '0')
    if seq ~= head + 1 then
      return {'dense', key, string.format('%.0f', head), ARGV[at + 2]}
    end
    heads[key] = seq
  end
  if kind == 'G' then
    at = at + 4 + tonumber(ARGV[at + 3])
    at = at + 1 + tonumber(ARGV[at])
  else
    at = at + length[kind]
  end
end

local position = tonumber(ARGV[3])
local function event(kind, body)
  if ARGV[7] ~= '0' then
    local id = string.format('%.0f-0', position)
    redis.call('XADD', KEYS[3], 'MAXLEN', '~', ARGV[7], id, 'k', kind, 'b', body)
  end
end

-- What the batch adds to logs and to streams' answers is written together, key by key. Lua hands a call some thousands of
-- arguments at most.
local together = 1000
local logs, streams, order = {}, {}, {}

local function write_log(key)
  local added = logs[key]
  if not added then return end
  logs[key] = nil
  local head = added[#added - 1]
  added[#added + 1] = 'h'
  added[#added + 1] = head
  redis.call('HSET', key, unpack(added))
end

local function log(key, seq, record)
  local added = logs[key]
  if not added then
    added = {}
    logs[key] = added
  end
  added[#added + 1] = seq
  added[#added + 1] = record
  if #added >= together then write_log(key) end
end

-- A tenth longer than promised, so that not every answer needs a write for it. A device's streams are kept for as long as
-- any of them.
local function keep(answers, device, is_new)
  local ms = tonumber(ARGV[9])
  if not is_new and redis.call('PTTL', answers) >= ms then return end
  for _, key in ipairs({ answers, device }) do
    redis.call('PEXPIRE', key, string.format('%.0f', ms * 1.1))
  end
end

-- The last answers of a stream, for their time; and the newest streams of a device. A stream that has no answers is new.
local function write_answers(key)
  local added = streams[key]
  if #added.records == 0 then return end
  local count = redis.call('RPUSH', key, unpack(added.records))
  local is_new = count == #added.records
  if is_new then
    redis.call('LREM', added.device, 0, added.stream)
    if redis.call('RPUSH', added.device, added.stream) > tonumber(ARGV[10]) then
      redis.call('DEL', added.device .. ':' .. redis.call('LPOP', added.device))
    end
  end
  if count > tonumber(ARGV[8]) then redis.call('LTRIM', key, '-' .. ARGV[8], -1) end
  keep(key, added.device, is_new)
  added.records = {}
end

local function answer(key, device, stream, record)
  local added = streams[key]
  if not added then
    added = { device = device, stream = stream, records = {} }
    streams[key] = added
    order[#order + 1] = key
  end
  added.records[#added.records + 1] = record
  if #added.records >= together then write_answers(key) end
end

-- Where a log begins ('f', 1 if unsaid), and from where on records may be left ('s'). Records go some thousands at a time;
-- what is left lies below the beginning, unseen, and goes with the next trims.
local function trim(key, wanted)
  local log = redis.call('HMGET', key, 'h', 'f', 's')
  local head, first, swept = tonumber(log[1] or '0'), tonumber(log[2] or '1'), tonumber(log[3] or '1')
  local begin = math.max(first, math.min(wanted, head))
  local stop = math.min(begin, swept + 16384)
  if begin == first and stop == swept then return end
  redis.call('HSET', key, 'f', string.format('%.0f', begin), 's', string.format('%.0f', stop))
  while swept < stop do
    local gone = {}
    while swept < stop and #gone < 1000 do
      gone[#gone + 1] = string.format('%.0f', swept)
      swept = swept + 1
    end
    redis.call('HDEL', key, unpack(gone))
  end
end

-- A cursor is the tail of its member: user \0 device \0 cursor.
local function cursor(key, name, record)
  local stored = redis.call('ZRANGEBYLEX', key, '[' .. name, '(' .. string.sub(name, 1, -2) .. '\1', 'LIMIT', 0, 1)[1]
  if stored then
    local above = false
    for byte = 1, #record do
      local old, new = string.byte(stored, #name + byte), string.byte(record, byte)
      if old ~= new then above = new > old break end
    end
    if not above then return end
    redis.call('ZREM', key, stored)
  end
  redis.call('ZADD', key, 0, name .. record)
end

at = 11
while at <= #ARGV do
  local kind, key = ARGV[at], KEYS[tonumber(ARGV[at + 1]) or 1]
  if kind == 'M' then
    local record = ARGV[at + 3]
    log(key, ARGV[at + 2], record)
    if ARGV[at + 4] ~= '0' then
      answer(KEYS[tonumber(ARGV[at + 4])], KEYS[tonumber(ARGV[at + 5])], ARGV[at + 6], ARGV[at + 7])
    end
    -- Where record.rs puts the length of the body, which ends the record.
    event('message', string.sub(record, #record + 1 - struct.unpack('>I4', record, 10)))
  elseif kind == 'R' then
    write_log(key)
    local log, seq = redis.call('HMGET', key, 'h', 'f'), tonumber(ARGV[at + 2])
    if seq <= tonumber(log[1] or '0') and seq >= tonumber(log[2] or '1') then
      redis.call('HSET', key, ARGV[at + 2], ARGV[at + 3])
    end
  elseif kind == 'G' then
    redis.call('HSET', key, '', ARGV[at + 2])
    local count = tonumber(ARGV[at + 3])
    at = at + 4
    for member = at, at + count - 1 do redis.call('HSET', key, ARGV[member], '') end
    at = at + count
    count = tonumber(ARGV[at])
    at = at + 1
    for member = at, at + count - 1 do redis.call('HDEL', key, ARGV[member]) end
    at = at + count
  elseif kind == 'S' then
    if ARGV[at + 3] == '1' then
      redis.call('HSET', key, ARGV[at + 2], ARGV[at + 4])
    else
      redis.call('HDEL', key, ARGV[at + 2])
    end
  elseif kind == 'C' then
    cursor(key, ARGV[at + 2], ARGV[at + 3])
  elseif kind == 'T' then
    write_log(key)
    trim(key, tonumber(ARGV[at + 2]))
  else
    event(ARGV[at + 1], ARGV[at + 2])
  end
  at = at + (length[kind] or 0)
  position = position + 1
end
for key in pairs(logs) do write_log(key) end
for _, key in ipairs(order) do write_answers(key) end

-- One element for each batch that named messages: position ':' what they are.
local fanned_out = tonumber(ARGV[5])
while true do
  local oldest = redis.call('LINDEX', KEYS[2], 0)
  if not oldest or tonumber(string.match(oldest, '^%d+')) >= fanned_out then break end
  redis.call('LPOP', KEYS[2])
end
if ARGV[6] ~= '' then redis.call('RPUSH', KEYS[2], ARGV[3] .. ':' .. ARGV[6]) end
redis.call('HSET', KEYS[1], 'p', string.format('%.0f', position))
-- Message ids are 20 digits, so that they compare as text: a Lua number would round them.
if ARGV[4] ~= '' and ARGV[4] > (fence[4] or '') then redis.call('HSET', KEYS[1], 'l', ARGV[4]) end
return {'ok'}
