"""What a partner site installs: the client of a Hanse federation."""
