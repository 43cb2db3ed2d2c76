"""A pretend SEV host: one model of AMD firmware and kernel behind two doors."""
