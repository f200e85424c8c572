-- Takes a partition whose holder was judged dead (its lease has another hash tag), if the fence is still the judged one.
-- KEYS: 1 fence, 2 outstanding, 3 events, 4 sessions that lost their place
-- ARGV: judged epoch or '', judged nonce or '', node, incarnation, wall ms, new nonce, losers told at most
local fence = redis.call('HMGET', KEYS[1], 'e', 'n', 'p', 'l')
if (fence[1] or '') ~= ARGV[1] or (fence[2] or '') ~= ARGV[2] then return {'changed'} end
local stored, epoch = tonumber(fence[1] or '0'), tonumber(ARGV[5])
if epoch <= stored then
  -- The clock is behind: by a random step, as a copy of the store that is given up and the one that takes its place would
  -- give the same epoch to two owners else.
  epoch = stored + 1 + tonumber(string.sub(ARGV[6], -6))
end
epoch = string.format('%.0f', epoch)
local position, last = fence[3], fence[4] or ''
if not position then
  -- A new partition. Events that outlived their fence keep their places: new ones must come behind them.
  local newest = redis.call('XREVRANGE', KEYS[3], '+', '-', 'COUNT', 1)[1]
  position = newest and string.format('%.0f', tonumber(string.match(newest[1], '^%d+')) + 1) or '1'
end
redis.call('HSET', KEYS[1], 'e', epoch, 'n', ARGV[6], 'w', ARGV[3], 'i', ARGV[4], 'p', position, 'l', last)
local losers = redis.call('ZRANGE', KEYS[4], 0, tonumber(ARGV[7]) - 1)
return {'ok', epoch, position, last, redis.call('LRANGE', KEYS[2], 0, -1), losers, copy()}
