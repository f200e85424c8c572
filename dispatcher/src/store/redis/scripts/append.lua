-- One batch of one partition, all or nothing. Lua does not roll back: everything is checked before the first write.
-- KEYS: 1 fence, 2 outstanding, 3 events, 4.. as the writes point at them
-- ARGV: 1 epoch, 2 nonce, 3 position, 4 the next one, 5 highest message id or '', 6 fanned out, 7 outstanding or '', 8 events
--   kept (0: off), 9 bytes of answers kept, 10 for how many ms, 11 streams kept, 12 entries that a log may have unfiled; then, for each
--   log that is not known (… of a key is its index in KEYS),
--   'D', log …, where it ends, where it is to end
--   and then what is to be written: how many messages are the only ones of their logs, of each log …, seq and record; and
--   the rest, where the place of a write is that in the batch, from 0
--   'L', log …, count, seqs and records ...: messages
--   'A', streams of a device …, stream, answers
--   'F', log …, up to where it is filed with these
--   'R', log …, seq, record
--   'G', members …, version, count, added members ..., count, removed members ...
--   'S', state …, key, 1 or 0, value
--   'C', cursors …, name, cursor
--   'T', log …, first seq
--   'M', place, how far its record stands behind that first count: a message as an event; and
--   'E', place, kind, body: others; both by place
local fence = redis.call('HMGET', KEYS[1], 'e', 'n', 'c', 'h', 'p', 'l')
if is_void(KEYS[1], fence, ARGV[1], ARGV[2]) then return {'fenced'} end
if fence[5] ~= ARGV[3] then return {'position', fence[5] or '0'} end

local at, looked = 13, {}
while ARGV[at] == 'D' do
  local key = KEYS[tonumber(ARGV[at + 1])]
  local log = log_of(key)
  if not is_whole(key, log) then return {'damaged', key, string.format('%.0f', log.head)} end
  if log.head ~= tonumber(ARGV[at + 2]) then return {'dense', key, string.format('%.0f', log.head), ARGV[at + 2]} end
  looked[#looked + 1] = at
  at = at + 4
end

local function event(place, kind, body)
  local id = string.format('%.0f-0', tonumber(ARGV[3]) + tonumber(place))
  redis.call('XADD', KEYS[3], 'MAXLEN', '~', ARGV[8], id, 'k', kind, 'b', body)
end

-- A tenth longer than promised, so that not every answer needs a write for it. A device's streams are kept for as long as
-- any of them.
local answers_ms = tonumber(ARGV[10])
local kept_ms = string.format('%.0f', answers_ms * 1.1)
local function keep(answers, device, is_new)
  if not is_new and redis.call('PTTL', answers) >= answers_ms then return end
  redis.call('PEXPIRE', answers, kept_ms)
  redis.call('PEXPIRE', device, kept_ms)
end

-- The last answers of a stream, for their time; and the newest streams of a device. A stream that has no answers is new.
-- Twice as many as are kept stay for a while, so that not every write has to cut.
local function write_answers(device, stream, answers)
  local key, most = device .. ':' .. stream, tonumber(ARGV[9])
  local bytes, is_new = #answers
  if bytes < most then
    bytes = redis.call('APPEND', key, answers)
    is_new = bytes == #answers
  else
    is_new = redis.call('EXISTS', key) == 0
    redis.call('SET', key, string.sub(answers, -most), 'KEEPTTL')
    bytes = most
  end
  if is_new then
    redis.call('LREM', device, 0, stream)
    if redis.call('RPUSH', device, stream) > tonumber(ARGV[11]) then
      redis.call('DEL', device .. ':' .. redis.call('LPOP', device))
    end
  end
  if bytes > 2 * most then redis.call('SET', key, redis.call('GETRANGE', key, -most, -1), 'KEEPTTL') end
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

-- Gives the answers in a log a place of their own, where the owner does not know them: of all entries that are not filed.
local prefix = string.sub(KEYS[1], 1, -1 - #'fence')
local together = 1000
local function file(key, filed, to)
  local conversation = string.sub(key, #prefix + 1 + #'l:')
  local streams, order = {}, {}
  local seq = filed + 1
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
          added = { device = device, stream = stream, answers = {} }
          streams[name] = added
          order[#order + 1] = added
        end
        added.answers[#added.answers + 1] = answer
      end
    end
  end
  for _, added in ipairs(order) do
    write_answers(prefix .. 'a:' .. conversation .. ':' .. added.device, added.stream, table.concat(added.answers))
  end
  redis.call('HSET', key, 'i', string.format('%.0f', to))
end

-- Where a log begins ('f', 1 if unsaid), and from where on records may be left ('s'). Records go some thousands at a time;
-- what is left lies below the beginning, unseen, and goes with the next trims.
local function trim(key, wanted)
  local log = log_of(key)
  local head, first, swept = log.head, log.first, log.swept
  if math.min(wanted, head) > log.filed + 1 then file(key, log.filed, head) end
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

local base, only = at, tonumber(ARGV[at])
for message = at + 1, at + 3 * only, 3 do
  redis.call('HSET', KEYS[tonumber(ARGV[message])], ARGV[message + 1], ARGV[message + 2])
end
at = at + 1 + 3 * only
while at <= #ARGV do
  local kind, key, n = ARGV[at], KEYS[tonumber(ARGV[at + 1])], tonumber(ARGV[at + 2])
  if kind == 'L' then
    redis.call('HSET', key, unpack(ARGV, at + 3, at + 2 + n))
    at = at + 3 + n
  elseif kind == 'A' then
    write_answers(key, ARGV[at + 2], ARGV[at + 3])
    at = at + 4
  elseif kind == 'F' then
    redis.call('HSET', key, 'i', ARGV[at + 2])
    at = at + 3
  elseif kind == 'R' then
    local log = log_of(key)
    if n <= log.head and n >= log.first then
      redis.call('HSET', key, ARGV[at + 2], ARGV[at + 3])
    end
    at = at + 4
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
    at = at + 5
  elseif kind == 'C' then
    cursor(key, ARGV[at + 2], ARGV[at + 3])
    at = at + 4
  elseif kind == 'T' then
    trim(key, n)
    at = at + 3
  elseif kind == 'M' then
    -- Where record.rs puts the length of the body, which ends the record.
    local record = ARGV[base + n]
    event(ARGV[at + 1], 'message', string.sub(record, #record + 1 - struct.unpack('>I4', record, 10)))
    at = at + 3
  else
    event(ARGV[at + 1], ARGV[at + 2], ARGV[at + 3])
    at = at + 4
  end
end
-- Up to where the logs are filed that were not known.
local filed = {}
for index, look in ipairs(looked) do
  local key, head = KEYS[tonumber(ARGV[look + 1])], tonumber(ARGV[look + 3])
  local stored = redis.call('HGET', key, 'i') or '0'
  if head >= tonumber(stored) + tonumber(ARGV[12]) then
    file(key, tonumber(stored), head)
    stored = ARGV[look + 3]
  end
  filed[index] = stored
end

-- One element for each batch that named messages: position ':' what they are.
local fanned_out = tonumber(ARGV[6])
while true do
  local oldest = redis.call('LINDEX', KEYS[2], 0)
  if not oldest or tonumber(string.match(oldest, '^%d+')) >= fanned_out then break end
  redis.call('LPOP', KEYS[2])
end
if ARGV[7] ~= '' then redis.call('RPUSH', KEYS[2], ARGV[3] .. ':' .. ARGV[7]) end
-- Message ids are 20 digits, so that they compare as text: a Lua number would round them.
if ARGV[5] > (fence[6] or '') then
  redis.call('HSET', KEYS[1], 'p', ARGV[4], 'l', ARGV[5])
else
  redis.call('HSET', KEYS[1], 'p', ARGV[4])
end
return {'ok', filed}
