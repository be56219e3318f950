"""Thousands of devices without models: real links of the real agent, over gRPC and TLS, in one or two processes.

What a device of `devices` says and hears is what an agent without work says and hears; link, stream, backoff and
heartbeats are the agent's own code. What it lacks is everything that needs a model.
"""
