-- One batch of one partition, all or nothing. Lua does not roll back: everything is checked before the first write.
-- KEYS: 1 fence, 2 outstanding, 3 events, 4.. as the writes point at them
-- ARGV: 1 epoch, 2 nonce, 3 position, 4 highest message id or '', 5 fanned out, 6 outstanding or '', 7 events kept (0: off),
--   8 answers kept, 9 for how many ms, 10 streams kept, 11 entries that a log may have unfiled, then for each write (… of a
--   key is its index in KEYS)
--   'M', log …, seq, record
--   'R', log …, seq, record
--   'G', members …, version, count, added members ..., count, removed members ...
--   'S', state …, key, 1 or 0, value
--   'C', cursors …, name, cursor
--   'T', log …, first seq
--   'E', kind, body
local fence = redis.call('HMGET', KEYS[1], 'e', 'n', 'c', 'h', 'p', 'l')
if is_void(KEYS[1], fence, ARGV[1], ARGV[2]) then return {'fenced'} end
if fence[5] ~= ARGV[3] then return {'position', fence[5] or '0'} end

-- Logs that the batch adds to or trims: their head, up to where their senders' answers are filed ('i'), and what is to be
-- written, which is written together. Lua hands a call some thousands of arguments at most.
local together = 1000
local logs = {}

local function log_of(key)
  local log = logs[key]
  if not log then
    local stored = redis.call('HMGET', key, 'h', 'i')
    log = { head = tonumber(stored[1] or '0'), filed = tonumber(stored[2] or '0'), added = {} }
    logs[key] = log
  end
  return log
end

local length = { M = 4, R = 4, S = 5, C = 4, T = 3, E = 3 }
local at = 12
while at <= #ARGV do
  local kind = ARGV[at]
  if kind == 'M' then
    local key, seq = KEYS[tonumber(ARGV[at + 1])], tonumber(ARGV[at + 2])
    local log = log_of(key)
    if seq ~= log.head + 1 then
      return {'dense', key, string.format('%.0f', log.head), ARGV[at + 2]}
    end
    log.head = seq
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
  local id = string.format('%.0f-0', position)
  redis.call('XADD', KEYS[3], 'MAXLEN', '~', ARGV[7], id, 'k', kind, 'b', body)
end

local function write_log(key, log)
  local added = log.added
  if #added == 0 then return end
  log.added = {}
  local head = added[#added - 1]
  added[#added + 1] = 'h'
  added[#added + 1] = head
  redis.call('HSET', key, unpack(added))
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
local function write_answers(device, stream, records)
  local key = device .. ':' .. stream
  local count = redis.call('RPUSH', key, unpack(records))
  local is_new = count == #records
  if is_new then
    redis.call('LREM', device, 0, stream)
    if redis.call('RPUSH', device, stream) > tonumber(ARGV[10]) then
      redis.call('DEL', device .. ':' .. redis.call('LPOP', device))
    end
  end
  if count > tonumber(ARGV[8]) then redis.call('LTRIM', key, '-' .. ARGV[8], -1) end
  keep(key, device, is_new)
end

-- The text whose length stands at a place, and the place behind it; nothing if the record ends before.
local function text(record, at)
  if #record < at + 1 then return end
  local stop = at + 2 + struct.unpack('>I2', record, at)
  if #record < stop - 1 then return end
  return string.sub(record, at + 2, stop - 1), stop
end

-- Who sent an entry, in which stream, and what that was answered; nothing if nobody waits for an answer. The places are
-- those of record.rs; the answer is as pack.rs has it: client_seq, payload hash, seq, message id, epoch.
local function answer_of(record)
  if not record or #record < 78 then return end
  local high, low = struct.unpack('>I4I4', record, 38)
  if high == 0 and low == 0 then return end
  local sender, behind = text(record, 79)
  local device = sender and text(record, behind)
  if not device then return end
  local stream = high > 0 and string.format('%x%08x', high, low) or string.format('%x', low)
  return sender .. ':' .. device, stream, string.sub(record, 46, 61) .. string.sub(record, 14, 37)
end

-- Gives the answers in a log, of all entries that are written and not filed, lists of their own: a stream's at a time.
local prefix = string.sub(KEYS[1], 1, -1 - #'fence')
local function file(key, log, to)
  local conversation = string.sub(key, #prefix + 1 + #'l:')
  local streams, order = {}, {}
  local seq = log.filed + 1
  while seq <= to do
    local seqs = {}
    while seq <= to and #seqs < together do
      seqs[#seqs + 1] = string.format('%.0f', seq)
      seq = seq + 1
    end
    for _, record in ipairs(redis.call('HMGET', key, unpack(seqs))) do
      local device, stream, answer = answer_of(record)
      if device then
        local name = device .. ':' .. stream
        local added = streams[name]
        if not added then
          added = { device = device, stream = stream, records = {} }
          streams[name] = added
          order[#order + 1] = added
        end
        added.records[#added.records + 1] = answer
        if #added.records > together then table.remove(added.records, 1) end
      end
    end
  end
  for _, added in ipairs(order) do
    write_answers(prefix .. 'a:' .. conversation .. ':' .. added.device, added.stream, added.records)
  end
  log.filed = to
  redis.call('HSET', key, 'i', string.format('%.0f', to))
end

-- Where a log begins ('f', 1 if unsaid), and from where on records may be left ('s'). Records go some thousands at a time;
-- what is left lies below the beginning, unseen, and goes with the next trims.
local function trim(key, log, wanted)
  local stored = redis.call('HMGET', key, 'h', 'f', 's')
  local head, first, swept = tonumber(stored[1] or '0'), tonumber(stored[2] or '1'), tonumber(stored[3] or '1')
  if math.min(wanted, head) > log.filed + 1 then file(key, log, head) end
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

at = 12
while at <= #ARGV do
  local kind, key = ARGV[at], KEYS[tonumber(ARGV[at + 1]) or 1]
  if kind == 'M' then
    local log, record = logs[key], ARGV[at + 3]
    local added = log.added
    added[#added + 1] = ARGV[at + 2]
    added[#added + 1] = record
    if #added >= together then write_log(key, log) end
    -- Where record.rs puts the length of the body, which ends the record.
    if ARGV[7] ~= '0' then
      event('message', string.sub(record, #record + 1 - struct.unpack('>I4', record, 10)))
    end
  elseif kind == 'R' then
    if logs[key] then write_log(key, logs[key]) end
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
    local log = log_of(key)
    write_log(key, log)
    trim(key, log, tonumber(ARGV[at + 2]))
  elseif ARGV[7] ~= '0' then
    event(ARGV[at + 1], ARGV[at + 2])
  end
  at = at + (length[kind] or 0)
  position = position + 1
end
for key, log in pairs(logs) do
  write_log(key, log)
  if log.head >= log.filed + tonumber(ARGV[11]) then file(key, log, log.head) end
end

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
if ARGV[4] ~= '' and ARGV[4] > (fence[6] or '') then redis.call('HSET', KEYS[1], 'l', ARGV[4]) end
return {'ok'}
