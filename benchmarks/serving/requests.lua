-- For wrk: POSTs the lines of a file in turn, and prints what was measured as one line of JSON.
--   wrk … URL -- FILE
local sent, all = 0, {}

function init(args)
  for line in io.lines(args[1]) do
    all[#all + 1] = wrk.format("POST", nil, {["Content-Type"] = "application/json"}, line)
  end
end

function request()
  sent = sent + 1
  return all[sent % #all + 1]
end

function done(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format(
    '{"requests": %d, "seconds": %f, "failed": %d, "p50": %f, "p99": %f}\n',
    summary.requests,
    summary.duration / 1e6,
    errors.connect + errors.read + errors.write + errors.timeout + errors.status,
    latency:percentile(50) / 1e3,
    latency:percentile(99) / 1e3
  ))
end
