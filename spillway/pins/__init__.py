"""The linter behind `spillway pins`: SQL that would pin an RDS Proxy session, found before it is deployed."""
