variable "name" {
  description = "Name of the cluster, and the beginning of every other name."
  type        = string
  default     = "counterray"

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{2,20}$", var.name))
    error_message = "name: 3 to 21 small letters, digits and hyphens, beginning with a letter."
  }
}

variable "region" {
  description = "Region of AWS; it needs p4d instances."
  type        = string
  default     = "eu-central-1"
}

variable "kubernetes_version" {
  description = "Version of EKS."
  type        = string
  default     = "1.34"
}

variable "subnet_ids" {
  description = "Private subnets of two zones or more, which reach S3, ECR and STS by endpoints or a NAT gateway."
  type        = list(string)

  validation {
    condition     = length(var.subnet_ids) >= 2
    error_message = "subnet_ids: EKS needs subnets of two zones or more."
  }
}

variable "gpu_subnet_id" {
  description = "The one of subnet_ids that GPU nodes stand in: between zones, gradients are slow and are paid for."
  type        = string
}

variable "operators_cidrs" {
  description = "Networks from which people reach the API server; none makes it private."
  type        = list(string)
  default     = []

  validation {
    condition     = !contains(var.operators_cidrs, "0.0.0.0/0")
    error_message = "operators_cidrs: the API server is not for everyone; name the networks of those who run it."
  }
}

variable "gpu_instance_type" {
  description = "Eight A100: p4d.24xlarge with 40 GB each, p4de.24xlarge with 80 GB."
  type        = string
  default     = "p4d.24xlarge"

  validation {
    condition     = contains(["p4d.24xlarge", "p4de.24xlarge"], var.gpu_instance_type)
    error_message = "gpu_instance_type: the manifests ask for eight A100 a node: p4d.24xlarge or p4de.24xlarge."
  }
}

variable "gpu_nodes_max" {
  description = "Most GPU nodes, on demand and on spot each; none stands where no job asks for one."
  type        = number
  default     = 2
}

variable "cpu_nodes_max" {
  description = "Most nodes for heads, the operator and monitoring."
  type        = number
  default     = 4
}
