"""What the images are made of: packages, their licences, an SBOM, and known vulnerabilities."""
