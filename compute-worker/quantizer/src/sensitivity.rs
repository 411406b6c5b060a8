//! What four bits cost, tensor by tensor and head by head.
