-- What a stream was answered: what is filed, and entries in the log that are not, with their seqs.
-- KEYS: 1 fence, 2 log, 3 answers    ARGV: epoch, nonce, the stream as it stands in a record
local fence = redis.call('HMGET', KEYS[1], 'e', 'n', 'c', 'h')
if is_void(KEYS[1], fence, ARGV[1], ARGV[2]) then return {'fenced'} end
local log = log_of(KEYS[2])
local seqs, found = {}, {}
for seq = log.filed + 1, log.head do seqs[#seqs + 1] = string.format('%.0f', seq) end
if #seqs > 0 then
  for index, record in ipairs(redis.call('HMGET', KEYS[2], unpack(seqs))) do
    -- Where record.rs puts the stream. A record that is missing, or too short for it, is found out by its reader.
    record = record or ''
    if #record < 45 or string.sub(record, 38, 45) == ARGV[3] then
      found[#found + 1] = seqs[index]
      found[#found + 1] = record
    end
  end
end
return {'ok', redis.call('GET', KEYS[3]) or '', found}
