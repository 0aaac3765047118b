"""Generated from protos/ by protos/generate.sh; not to be edited."""
