-- Which copy of the store this is: by its process, or by its replication id once it was promoted. That alone would be new also
-- where a first replica attaches to a server that keeps no backlog, which loses nothing.
local function copy()
  local info = redis.pcall('INFO', 'replication')
  local id = type(info) == 'string' and string.match(info, 'master_replid:(%x+)')
  if id and string.match(info, 'second_repl_offset:(%-?%d+)') == '-1' then
    local server = redis.pcall('INFO', 'server')
    id = type(server) == 'string' and string.match(server, 'run_id:(%x+)') or id
  end
  return id and tonumber(string.sub(id, 1, 12), 16) + 1 or 1
end
