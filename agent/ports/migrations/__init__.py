"""How the ledger's tables came about, one revision after another. A revision that was released never changes."""
