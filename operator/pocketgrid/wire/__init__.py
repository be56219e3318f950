"""The contract with devices: agent.proto, its generated code, and the limits both ends keep."""
