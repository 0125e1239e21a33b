"""The agent in a cluster: its ServingNode in, engines and ports to match, reports out."""
