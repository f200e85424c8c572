-- Takes a partition whose holder was judged dead (its lease has another hash tag), if the fence is still the judged one.
-- KEYS: 1 fence, 2 outstanding, 3 events, 4 sessions that lost their place
-- ARGV: judged epoch or '', judged nonce or '', node, incarnation, epoch to be above, new nonce, losers told at most,
--   step between two copies of the store, ms
local fence = redis.call('HMGET', KEYS[1], 'e', 'n', 'p', 'l', 't', 'c')
if (fence[1] or '') ~= ARGV[1] or (fence[2] or '') ~= ARGV[2] then return {'changed'} end
-- By this server's clock, never the claimers': one of them that is a day ahead would take all epochs along.
local time = redis.call('TIME')
local now, this = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000), string.format('%.0f', copy())
-- Of copies that go on from one state, each without what the others wrote, the one that takes over later gives the higher
-- epochs: it begins a step ahead of the clock; and what is ahead of the clock goes on with time, within a copy at half the
-- speed, until the clock has caught up.
local is_new = fence[6] ~= this
local epoch = is_new and now + tonumber(ARGV[8]) or now
if fence[1] then
  -- Claims of earlier versions have no time: by chance then.
  local passed = fence[5] and now - tonumber(fence[5]) or tonumber(string.sub(ARGV[6], -3))
  epoch = math.max(epoch, tonumber(fence[1]) + math.max(1, is_new and passed or math.floor(passed / 2)))
end
local above = tonumber(ARGV[5])
-- By chance, as another copy may be asked for the same.
if epoch <= above then epoch = above + 1 + tonumber(string.sub(ARGV[6], -3)) end
epoch = string.format('%.0f', epoch)
local position, last = fence[3], fence[4] or ''
if not position then
  -- A new partition. Events that outlived their fence keep their places: new ones must come behind them.
  local newest = redis.call('XREVRANGE', KEYS[3], '+', '-', 'COUNT', 1)[1]
  position = newest and string.format('%.0f', tonumber(string.match(newest[1], '^%d+')) + 1) or '1'
end
redis.call('HSET', KEYS[1], 'e', epoch, 'n', ARGV[6], 'w', ARGV[3], 'i', ARGV[4], 'p', position, 'l', last,
  't', string.format('%.0f', now), 'c', this, 'h', (history()))
local losers = redis.call('ZRANGE', KEYS[4], 0, tonumber(ARGV[7]) - 1)
return {'ok', epoch, position, last, redis.call('LRANGE', KEYS[2], 0, -1), losers, tonumber(this)}
