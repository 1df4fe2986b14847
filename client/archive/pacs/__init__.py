"""A PACS as a source of pictures, over DICOMweb or DIMSE."""
