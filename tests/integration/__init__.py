"""The whole product, through its real command line. A package, so that its files may be named as the units they try."""
