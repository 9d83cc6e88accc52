"""The exact memory: stages added up in whole numbers, solved in closed form, without any network."""
