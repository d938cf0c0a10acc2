"""The network (`models.ofa`), its decoding (`models.generation`) and the fairseq door (`models.fairseq_ofa`)."""
