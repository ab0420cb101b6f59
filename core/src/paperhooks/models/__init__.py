"""Finding the model that really runs, and what its modules are asked for."""
