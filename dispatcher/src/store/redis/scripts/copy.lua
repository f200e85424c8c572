-- What stands before scripts that must know which copy of the store they run in.

-- The id of this server's history, which is another one after a start and a promotion; and all that it says of replication.
-- Both are empty where INFO is not allowed.
local function history()
  local info = redis.pcall('INFO', 'replication')
  if type(info) ~= 'string' then return '', '' end
  return string.match(info, 'master_replid:(%x+)') or '', info
end

-- Which copy of the store this is: by its process, or by the id of its history once it was promoted. That alone would be new
-- also where a first replica attaches to a server that keeps no backlog, which loses nothing.
local function copy()
  local id, info = history()
  if string.match(info, 'second_repl_offset:(%-?%d+)') == '-1' then
    local server = redis.pcall('INFO', 'server')
    id = type(server) == 'string' and string.match(server, 'run_id:(%x+)') or id
  end
  return id ~= '' and tonumber(string.sub(id, 1, 12), 16) + 1 or 1
end

-- Whether a claim is void: it is not the partition's present one, or another copy of the store granted it. That one's fences
-- are here too, and what was read of it may not be. `fence`: e, n, c and h of it.
local function is_void(key, fence, epoch, nonce)
  if fence[1] ~= epoch or fence[2] ~= nonce then return true end
  -- With the history of the claim this is the copy that granted it; that is the cheap way to see it. Claims of earlier
  -- versions name no copy.
  local id = history()
  if not fence[3] or fence[4] == id then return false end
  if fence[3] ~= string.format('%.0f', copy()) then return true end
  -- The same copy, whose history has another id: seen at once from now on. Where memory is used up, the long way.
  redis.pcall('HSET', key, 'h', id)
  return false
end
