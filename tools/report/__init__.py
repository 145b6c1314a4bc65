"""One page of HTML about one or several runs."""
