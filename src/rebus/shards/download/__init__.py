"""Pictures behind URLs -> shards: asked for politely, checked, made smaller, written whole or not at all."""
