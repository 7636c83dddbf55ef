"""The configuration file: YAML to frozen, validated sections."""
