"""Selection -> plan: which documents share a pack. An index only; it copies no pixel and no text."""
