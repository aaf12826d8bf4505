-- One request, again and again, and a line of JSON about how that went. See load.py.
wrk.method = "POST"
local file = assert(io.open(os.getenv("BENCH_BODY"), "rb"))
wrk.body = file:read("*a")
file:close()
wrk.headers["Content-Type"] = "application/json"
if os.getenv("BENCH_JSON_BYTES") then
    wrk.headers["Content-Type"] = "application/octet-stream"
    wrk.headers["Inference-Header-Content-Length"] = os.getenv("BENCH_JSON_BYTES")
end

-- Milliseconds between an answer and the next request, on the average; none: at once.
local pause = tonumber(os.getenv("BENCH_PAUSE_MS"))
if pause then
    function delay()
        return math.random(1, 2 * pause - 1)
    end
end

function done(summary, latency)
    local errors = summary.errors
    io.write(string.format(
        'RESULT {"requests": %d, "seconds": %.6f, "p50_ms": %.3f, "p99_ms": %.3f, "bad_status": %d, "socket_errors": %d}\n',
        summary.requests, summary.duration / 1e6,
        latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
        errors.status, errors.connect + errors.read + errors.write + errors.timeout
    ))
end
