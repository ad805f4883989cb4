"""One module a family of formats. Each takes text and gives an Outline; none touches a file."""
