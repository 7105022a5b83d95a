"""Trained policies that come with the package, as arrays and a card in JSON: no code is loaded with them."""
