"""Operations, one folder each: a public entry, a pure-torch reference, and backends."""
