"""Networks: encoders, action distributions, and the policy made of them. Only torch is known here."""
