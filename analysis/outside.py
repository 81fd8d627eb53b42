"""What can be measured of a cluster of which only callers are seen, as of somebody else's endpoint."""

SEEN = frozenset(
    (
        *("success_rate", "refused_rate", "told_in_time_rate", "goodput_rate"),
        *("latency_p50_s", "latency_p95_s", "latency_p99_s", "ttft_p50_s", "ttft_p95_s", "refusal_p95_s"),
        *("inter_token_p50_s", "inter_token_p95_s", "latency_p50_ratio", "latency_p95_ratio"),
        *("throughput_requests_per_s", "throughput_tokens_per_s", "dispatch_lag_p99_s"),
        *("latency_drift", "throughput_drift", "return_to_steady_s"),
    )
)
"""Names of metrics. All others need rows of the cluster's own nodes."""

SERVER_SIDE = frozenset(
    (
        *("HTTP_500", "HTTP_502", "HTTP_503", "HTTP_504", "HTTP_408", "HTTP_429", "HTTP_529"),
        *("ERROR_EVENT", "CONNECTION_BROKEN", "BAD_RESPONSE"),
    )
)
"""Codes with which a server that knows none of ours says that something behind it has gone wrong, or breaks off. Not
among them: CONNECT_FAILED, for then the endpoint itself is gone, and 4xx, which say that the request was wrong."""
