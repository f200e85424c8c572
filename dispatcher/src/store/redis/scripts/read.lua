-- Entries of a log while their bodies fit, one at least; and the lowest id there is.
-- KEYS: 1 log    ARGV: first seq, last seq, bytes
local page = 16 -- entries looked at in one step: at most this many are read in vain
local found, bytes, from = {}, 0, ARGV[1] .. '-0'
local first = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
while true do
  local entries = redis.call('XRANGE', KEYS[1], from, ARGV[2] .. '-0', 'COUNT', page)
  for _, entry in ipairs(entries) do
    local record = entry[2][2]
    -- Where record.rs puts the length of the body. A record too short for it is found out by its reader.
    if #record >= 13 then bytes = bytes + struct.unpack('>I4', record, 10) end
    if bytes > tonumber(ARGV[3]) and #found > 0 then return {first[1], found} end
    found[#found + 1] = entry
  end
  if #entries < page then return {first and first[1] or '', found} end
  from = '(' .. entries[#entries][1]
end
