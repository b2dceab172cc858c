-- Whether a body in JSON has the shape of its request: fields that the contract names, each once, lists where there are
-- lists, objects where there are objects. CONTRACT (contract.lua) says what that is. Values are the transcoder's and the
-- services' business. What is passed on is JSON by RFC 8259, which the transcoder (it takes more) reads in the same way.
--
-- Only what the contract knows is descended into, so that nothing is nested deeper than the contract is.
--
-- Written byte by byte: loops of string.byte become machine code in LuaJIT, patterns do not.

local byte, find, format, gsub, match, sub = string.byte, string.find, string.format, string.gsub, string.match, string.sub
local QUOTE, BACKSLASH, COMMA, COLON, MINUS = 34, 92, 44, 58, 45
local LIST, END_OF_LIST, OBJECT, END_OF_OBJECT = 91, 93, 123, 125
local SPACE = {[9] = true, [10] = true, [13] = true, [32] = true}
local ESCAPES, HEXADECIMAL, DIGITS = {}, {}, {}
for sign in ('"\\/bfnrt'):gmatch(".") do ESCAPES[byte(sign)] = true end
for sign in ("0123456789abcdefABCDEF"):gmatch(".") do HEXADECIMAL[byte(sign)] = true end
for sign in ("0123456789"):gmatch(".") do DIGITS[byte(sign)] = true end

-- Of a name that the client made up, what a refusal repeats.
local LONGEST_NAME = 64

local EXPECTED = {
  string = "a string",
  bytes = "a string in base64",
  time = 'a time as a string, such as "2030-05-01T18:30:00Z"',
  duration = 'a duration as a string, such as "3600s"',
  mask = 'names of fields as one string, such as "name,policy"',
  number = "a number",
  boolean = "true or false",
}

-- By how it begins, what a value is.
local FOUND = {["["] = "a list", ["{"] = "an object", ['"'] = "a string", t = "true", f = "false", n = "null"}

-- What may stand for a kind: numbers of 64 bits are strings in JSON, enums may be numbers.
local STRINGS = {string = true, bytes = true, time = true, duration = true, mask = true, number = true, enum = true}
local NUMBERS = {number = true, enum = true}

-- To where the check is: names of fields, and numbers of entries. Nothing waits while a body is looked at, so that there
-- is one at a time.
local way, depth = {}, 0

local function path_to(name)
  local path = ""
  for at = 1, depth do
    local step = way[at]
    path = path .. (type(step) == "number" and format("[%d]", step) or (at == 1 and step or "." .. step))
  end
  if not name then return path end
  return depth > 0 and path .. "." .. name or name
end

local function refuse(field, description)
  error({field = field, description = description}, 0)
end

local function malformed(text, at, expected)
  local where = at > #text and "where the body ends" or format("at byte %d", at)
  error({description = format("the body is not JSON: %s, there should be %s", where, expected)}, 0)
end

local function behind_space(text, at)
  while SPACE[byte(text, at)] do at = at + 1 end
  return at
end

-- Behind the string that begins at `at`.
local function behind_string(text, at)
  at = at + 1
  while true do
    local sign = byte(text, at)
    if sign == QUOTE then
      return at + 1
    elseif sign == BACKSLASH then
      if ESCAPES[byte(text, at + 1)] then
        at = at + 2
      else
        local a, b, c, d, e = byte(text, at + 1, at + 5)
        if a ~= 117 or not (HEXADECIMAL[b] and HEXADECIMAL[c] and HEXADECIMAL[d] and HEXADECIMAL[e]) then
          malformed(text, at, "an escape sequence of JSON")
        end
        at = at + 6
      end
    elseif not sign then
      malformed(text, at, 'the end of a string, "')
    elseif sign < 32 then
      malformed(text, at, "no control character")
    else
      at = at + 1
    end
  end
end

local function behind_number(text, at)
  local from = match(text, "^-?0()", at) or match(text, "^-?[1-9]%d*()", at)
  if not from then malformed(text, at, "a value") end
  from = match(text, "^%.%d+()", from) or from
  return match(text, "^[eE][+-]?%d+()", from) or from
end

-- Names of the contract are plain letters: what an escape sequence stands for besides is no name of one.
local function plain(name)
  if not find(name, "\\", 1, true) then return name end
  return (gsub(name, "\\u00(%x%x)", function(code) return string.char(tonumber(code, 16)) end))
end

local function shown(name)
  local cut = gsub(sub(name, 1, LONGEST_NAME), "[^%w_.-]", "?")
  return #name > LONGEST_NAME and cut .. "..." or cut
end

local function is_number(sign)
  return sign == MINUS or DIGITS[sign]
end

local function kind_of(text, at, otherwise)
  local found = FOUND[sub(text, at, at)] or (is_number(byte(text, at)) and "a number")
  if not found then malformed(text, at, otherwise) end
  return found
end

local function one_of(field)
  if field.message then return "an object with " .. field.message.names end
  if field.values then return "one of " .. field.values end
  return EXPECTED[field.kind]
end

local object

-- Behind a value of the kind that the field has, or each entry of it.
local function behind_value(text, at, field)
  local sign = byte(text, at)
  if field.message then
    if sign == OBJECT then return object(text, at + 1, field.message) end
  elseif sign == QUOTE then
    if STRINGS[field.kind] then return behind_string(text, at) end
  elseif field.kind == "boolean" then
    if sub(text, at, at + 3) == "true" then return at + 4 end
    if sub(text, at, at + 4) == "false" then return at + 5 end
  elseif NUMBERS[field.kind] and is_number(sign) then
    return behind_number(text, at)
  end
  local found = kind_of(text, at, "a value")
  refuse(path_to(), format("must be %s, not %s", one_of(field), found))
end

local function behind_list(text, at, field)
  at = behind_space(text, at)
  if byte(text, at) == END_OF_LIST then return at + 1 end
  depth = depth + 1
  local number = 0
  while true do
    way[depth] = number
    at = behind_space(text, behind_value(text, at, field))
    local sign = byte(text, at)
    if sign == END_OF_LIST then
      depth = depth - 1
      return at + 1
    end
    if sign ~= COMMA then malformed(text, at, "a comma or ]") end
    at = behind_space(text, at + 1)
    number = number + 1
  end
end

local function behind_field(text, at, field)
  -- As if it were left out.
  if sub(text, at, at + 3) == "null" then return at + 4 end
  if not field.list then return behind_value(text, at, field) end
  if byte(text, at) == LIST then return behind_list(text, at + 1, field) end
  local found = kind_of(text, at, "a value")
  refuse(path_to(), format("must be a list, each entry of it %s; not %s", one_of(field), found))
end

-- Behind the object whose first name may stand at `at`.
function object(text, at, message)
  local given = {}
  at = behind_space(text, at)
  if byte(text, at) == END_OF_OBJECT then return at + 1 end
  while true do
    if byte(text, at) ~= QUOTE then malformed(text, at, "a name in double quotes") end
    local from = behind_string(text, at)
    local name = plain(sub(text, at + 1, from - 2))
    local field = message.fields[name]
    if not field then
      refuse(path_to(shown(name)), "is no field of " .. message.name .. ", which has " .. message.names)
    end
    if field.of_path then refuse(path_to(field.name), "is said by the path, and not again in the body") end
    if given[field] then refuse(path_to(field.name), "is given twice") end
    given[field] = true
    at = behind_space(text, from)
    if byte(text, at) ~= COLON then malformed(text, at, "a colon") end
    depth = depth + 1
    way[depth] = field.name
    at = behind_space(text, behind_field(text, behind_space(text, at + 1), field))
    depth = depth - 1
    local sign = byte(text, at)
    if sign == END_OF_OBJECT then return at + 1 end
    if sign ~= COMMA then malformed(text, at, "a comma or }") end
    at = behind_space(text, at + 1)
  end
end

local function check(text, message)
  depth = 0
  local at = behind_space(text, 1)
  if byte(text, at) ~= OBJECT then
    local found = kind_of(text, at, "an object")
    error({description = format("the body must be an object with %s, not %s", message.names, found)}, 0)
  end
  at = behind_space(text, object(text, at + 1, message))
  if at <= #text then malformed(text, at, "nothing more") end
end

-- The messages of CONTRACT by the names of their fields, in both spellings; of a request without the fields of its path.
local messages = {}

local function compiled(name, of_path)
  local made = {name = match(name, "[^.]+$"), fields = {}}
  local names = {}
  for _, field in ipairs(CONTRACT.messages[name]) do
    local entry = {name = field.name, kind = field.kind, list = field.list, values = field.values}
    entry.of_path = of_path[field.name]
    if field.message then
      messages[field.message] = messages[field.message] or compiled(field.message, {})
      entry.message = messages[field.message]
    end
    if not entry.of_path then names[#names + 1] = field.name end
    made.fields[field.name] = entry
    made.fields[field.json_name] = entry
  end
  made.names = #names > 0 and table.concat(names, ", ") or "no fields"
  return made
end

local calls = {POST = {}, PATCH = {}}
for _, call in ipairs(CONTRACT.calls) do
  local of_path = {}
  for _, name in ipairs(call.of_path) do of_path[name] = true end
  local there = calls[call.verb]
  there[#there + 1] = {path = call.path, request = compiled(call.request, of_path)}
end

local function request_of(verb, path)
  for _, call in ipairs(calls[verb] or {}) do
    if find(path, call.path) then return call.request end
  end
end

-- Whether a body is JSON, as its type says it; without any it is.
local function says_json(content_type)
  local kind = match(string.lower(content_type), "^[^;]*"):match("^%s*(.-)%s*$")
  return kind == "" or kind == "application/json"
end

function envoy_on_request(handle)
  local headers = handle:headers()
  local request = request_of(headers:get(":method"), match(headers:get(":path"), "^[^?]*"))
  -- As the transcoder says it; whatever it reads, this has read before.
  if not request then return handle:respond({[":status"] = "404"}, "") end
  local content_type = headers:get("content-type") or ""
  -- Waits; `headers` is of no use behind it.
  local body = handle:body()
  -- Clients that send nothing often say a type all the same.
  if not body or body:length() == 0 then return end
  if not says_json(content_type) then return handle:respond({[":status"] = "415"}, "") end
  local text = body:getBytes(0, body:length())
  -- What some clients send that have nothing to say. The transcoder would refuse it.
  if match(text, "^[ \t\r\n]*null[ \t\r\n]*$") then
    handle:headers():replace("content-length", tostring(body:setBytes("{}")))
    return
  end
  local right, wrong = pcall(check, text, request)
  if right then return end
  if type(wrong) ~= "table" then
    handle:logErr("bodies.lua: " .. tostring(wrong))
    wrong = {description = "the body cannot be read"}
  end
  -- For local_replies.yaml.
  if wrong.field then
    local said = handle:streamInfo():dynamicMetadata()
    said:set("dinemesh.body", "field", wrong.field)
    said:set("dinemesh.body", "description", wrong.description)
    handle:respond({[":status"] = "400"}, wrong.field .. ": " .. wrong.description)
  else
    handle:respond({[":status"] = "400"}, wrong.description)
  end
end
