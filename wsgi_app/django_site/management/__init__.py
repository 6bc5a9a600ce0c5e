"""Commands of this Django site."""
