-- What stands before scripts that must know where a log ends.

-- Where a log begins, from where on records may be left, up to where its answers are filed, and where it ends: nothing of
-- that is written with an entry. The log is as long as it has records; what else is kept with them is counted out.
local function log_of(key)
  local kept = redis.call('HMGET', key, 'f', 's', 'i')
  local count = redis.call('HLEN', key)
  for at = 1, 3 do
    if kept[at] then count = count - 1 end
  end
  local swept = tonumber(kept[2] or '1')
  return { first = tonumber(kept[1] or '1'), swept = swept, filed = tonumber(kept[3] or '0'), head = swept - 1 + count }
end

-- Whether it has the last of as many records and none behind it. A record that is gone, or one too many, would have the next
-- entry written over another.
local function is_whole(key, log)
  local function has(seq) return redis.call('HEXISTS', key, string.format('%.0f', seq)) == 1 end
  return (log.head < log.first or has(log.head)) and not has(log.head + 1)
end
