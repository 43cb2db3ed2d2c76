"""What the tests share: builders and real VMMs. Nothing here shares code with what it checks."""
