"""The Model Context Protocol: the index as tools, resources and a prompt for agents."""
