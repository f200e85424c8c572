-- Entries of a log while their bodies fit, one at least; and where the log begins and ends.
-- KEYS: 1 log, 2 fence if it is to be compared
-- ARGV: first seq, last seq, bytes, entries, newest first 0|1, epoch, nonce
if KEYS[2] then
  local fence = redis.call('HMGET', KEYS[2], 'e', 'n', 'c', 'h')
  if is_void(KEYS[2], fence, ARGV[6], ARGV[7]) then return {'fenced'} end
end
local page = 16 -- entries looked at in one step: at most this many are read in vain
local log = log_of(KEYS[1])
local head, first = log.head, log.first
local low, high = math.max(tonumber(ARGV[1]), first), math.min(tonumber(ARGV[2]), head)
local at, last, step = low, high, 1
if ARGV[5] == '1' then at, last, step = high, low, -1 end
local left, bytes, found = math.min(high - low + 1, tonumber(ARGV[4])), 0, {}
while left > 0 do
  local seqs = {}
  while #seqs < page and #seqs < left do
    seqs[#seqs + 1] = string.format('%.0f', at)
    at = at + step
  end
  for index, record in ipairs(redis.call('HMGET', KEYS[1], unpack(seqs))) do
    record = record or ''
    -- Where record.rs puts the length of the body. A record too short for it is found out by its reader.
    if #record >= 13 then bytes = bytes + struct.unpack('>I4', record, 10) end
    if bytes > tonumber(ARGV[3]) and #found > 0 then return {'ok', first, head, found} end
    found[#found + 1] = seqs[index]
    found[#found + 1] = record
  end
  left = left - #seqs
end
return {'ok', first, head, found}
