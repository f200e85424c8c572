-- Says who owns partitions. A hint only, but a late one must not replace a newer one.
-- KEYS: 1 owners    ARGV: partition, epoch, node or '', ...
for at = 1, #ARGV, 3 do
  local stored = redis.call('HGET', KEYS[1], ARGV[at])
  local epoch = stored and tonumber(string.match(stored, '^%d+')) or 0
  if tonumber(ARGV[at + 1]) >= epoch then
    redis.call('HSET', KEYS[1], ARGV[at], ARGV[at + 1] .. ':' .. ARGV[at + 2])
  end
end
return 1
