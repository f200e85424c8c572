-- Changes items of one user's list. A member is item \0 value, so that they are in the order of the items.
-- KEYS: 1 list; under a claim of any partition: 2 its fence
-- ARGV: under a claim: epoch, nonce; then 'p' put | 'a' add | 'r' remove, item, value, ...
local from = 1
if KEYS[2] then
  local fence = redis.call('HMGET', KEYS[2], 'e', 'n', 'c', 'h')
  if is_void(KEYS[2], fence, ARGV[1], ARGV[2]) then return {'fenced'} end
  from = 3
end
for at = from, #ARGV, 3 do
  local change, item = ARGV[at], ARGV[at + 1]
  local stored = redis.call('ZRANGEBYLEX', KEYS[1], '[' .. item .. '\0', '(' .. item .. '\1', 'LIMIT', 0, 1)[1]
  if stored and change ~= 'a' then redis.call('ZREM', KEYS[1], stored) end
  if change == 'p' or (change == 'a' and not stored) then
    redis.call('ZADD', KEYS[1], 0, item .. '\0' .. ARGV[at + 2])
  end
end
return {'ok'}
