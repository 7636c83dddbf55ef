"""Other systems that keep experiments or jobs in a database, doing what we do: one module for each."""
