-- Which copy of the store this is, by its replication id, which is new with each promotion and restart.
local function copy()
  local info = redis.pcall('INFO', 'replication')
  local id = type(info) == 'string' and string.match(info, 'master_replid:(%x+)')
  return id and tonumber(string.sub(id, 1, 12), 16) + 1 or 1
end
