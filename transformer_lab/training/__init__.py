"""Training: data, loss, optimizer, schedule, step and loop. It knows models and backends; nothing below knows it."""
