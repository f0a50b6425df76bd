"""Running compiled programs: machine description, compile cache, building and loading libraries."""
