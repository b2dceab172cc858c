"""The restaurant's side: restaurants, their policy and slots, and their copy of each reservation."""
