"""Keys of encrypted repositories, and the form in which objects are sealed with them."""
