-- One batch of one partition, all or nothing. Lua does not roll back: everything is checked before the first write.
-- KEYS: 1 fence, 2.. logs and member tables, as the writes point at them
-- ARGV: epoch, nonce, position, highest message id or '', then for each write
--   'M', key index, seq, record
--   'G', key index, version, count, added members ..., count, removed members ...
local fence = redis.call('HMGET', KEYS[1], 'e', 'n', 'p', 'l')
if fence[1] ~= ARGV[1] or fence[2] ~= ARGV[2] then return {'fenced'} end
if fence[3] ~= ARGV[3] then return {'position', fence[3] or '0'} end

local heads, writes, at = {}, 0, 5
while at <= #ARGV do
  writes = writes + 1
  if ARGV[at] == 'M' then
    local key, seq = KEYS[tonumber(ARGV[at + 1])], tonumber(ARGV[at + 2])
    local head = heads[key]
    if not head then
      local newest = redis.call('XREVRANGE', key, '+', '-', 'COUNT', 1)[1]
      head = newest and tonumber(string.match(newest[1], '^%d+')) or 0
    end
    if seq ~= head + 1 then
      return {'dense', key, string.format('%.0f', head), ARGV[at + 2]}
    end
    heads[key] = seq
    at = at + 4
  else
    at = at + 4 + tonumber(ARGV[at + 3])
    at = at + 1 + tonumber(ARGV[at])
  end
end

at = 5
while at <= #ARGV do
  local key = KEYS[tonumber(ARGV[at + 1])]
  if ARGV[at] == 'M' then
    redis.call('XADD', key, ARGV[at + 2] .. '-0', 'e', ARGV[at + 3])
    at = at + 4
  else
    redis.call('HSET', key, '', ARGV[at + 2])
    local count = tonumber(ARGV[at + 3])
    at = at + 4
    for member = at, at + count - 1 do redis.call('HSET', key, ARGV[member], '') end
    at = at + count
    count = tonumber(ARGV[at])
    at = at + 1
    for member = at, at + count - 1 do redis.call('HDEL', key, ARGV[member]) end
    at = at + count
  end
end
redis.call('HSET', KEYS[1], 'p', string.format('%.0f', tonumber(ARGV[3]) + writes))
-- Message ids are 20 digits, so that they compare as text: a Lua number would round them.
if ARGV[4] ~= '' and ARGV[4] > (fence[4] or '') then redis.call('HSET', KEYS[1], 'l', ARGV[4]) end
return {'ok'}
